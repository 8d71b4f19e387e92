"""PostgreSQL's names and file formats: pure code, no input or output."""
