"""What one row of a user's file means: shapes, fields, conversations."""
