"""What people read: tables, plots, the report page and the model card."""
