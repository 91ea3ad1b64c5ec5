"""Ranking, metrics, baselines, offline prediction."""
