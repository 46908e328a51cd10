"""Durable jobs in SQL: one `JobStore` on SQLite (one machine) or PostgreSQL (a cluster)."""

from service.store.jobs import Bounds, Estimate, Job, Lease, Loss, NewJob, Priority, Progress
from service.store.store import JobStore

__all__ = ["Bounds", "Estimate", "Job", "JobStore", "Lease", "Loss", "NewJob", "Priority", "Progress"]
