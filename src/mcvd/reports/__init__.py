"""Reports for readers: pages, comparisons, published values. Reads the folders that evaluations write."""
