"""Training: how a stage trains, resumes and computes."""
