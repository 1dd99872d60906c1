"""From records to figures: percentiles with intervals, validity, explanations, objectives."""
