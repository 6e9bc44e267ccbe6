"""What readers see: results with their statistics, tables, drawings and HTML pages."""
