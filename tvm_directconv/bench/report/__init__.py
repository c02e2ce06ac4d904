"""Reports: raw rows as they were measured, figures derived from them, plots and pages."""
