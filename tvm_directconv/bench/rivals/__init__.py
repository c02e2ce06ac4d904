"""Other libraries, each in a well-defined form, and what compares them with ours."""
