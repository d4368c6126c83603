"""Reports and plots for people: check, profile, plot. Returns values, prints nothing."""
