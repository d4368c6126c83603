"""Reports and pictures for people: check, profile, plot. Returns values, prints nothing."""
