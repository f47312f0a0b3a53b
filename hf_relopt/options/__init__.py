"""Options: what there is, what is allowed, and the method that they make."""
