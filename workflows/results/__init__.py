"""Evaluations of finished artifacts: tables, comparisons, promotions."""
