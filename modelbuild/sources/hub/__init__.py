"""Sources on the Hub: repositories at a commit, read through the Hub's own client and its cache."""
