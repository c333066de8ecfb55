"""What was measured, for people: pages, comparisons, published values. Reads the folders that evaluations leave."""
