"""A page to click through the catalogue and watch the recommendations change."""
