"""The verbs: one file and one function that reads as the procedure."""
