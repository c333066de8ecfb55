"""A page for a browser: a clip as a row of frames, those that are given, those to be generated."""
