"""The same networks in other libraries."""
