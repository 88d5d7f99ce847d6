"""What every stage needs. It changes rarely: a change here runs everything again."""
