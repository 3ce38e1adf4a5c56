"""What a query log is worth: orders by demand beside those that know only the items, under traffic of Zipf's law."""
