"""The paper's tables and figures as data: their plan, the records of runs, how both are shown. No torch."""
