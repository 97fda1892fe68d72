"""Records of runs, and the tables, figures and pages made of them. Imports no torch."""
