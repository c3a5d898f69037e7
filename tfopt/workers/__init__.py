"""Training on several processes and hosts: who the workers are, how they meet, and who restarts them."""
