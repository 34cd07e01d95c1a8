"""Task programs that the tests run."""
