"""Processes that train together: how they find each other, agree, and are looked after."""
