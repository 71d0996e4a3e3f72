"""What authors' code computes on made-up weights, kept as arrays, against what this project computes."""
