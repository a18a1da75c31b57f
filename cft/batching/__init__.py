"""Token sequences laid out for a forward pass: prefix trees where they are exact, padded rows elsewhere."""
