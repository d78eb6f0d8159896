"""What is read from finished artifacts: tables, comparisons, promotions."""
