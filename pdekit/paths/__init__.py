"""The paths' wing: from a problem to E f(X_T) at points."""
