"""Durable jobs in SQL: one `JobStore` on SQLite (one machine) or PostgreSQL (a cluster)."""

from service.store.jobs import Estimate, Job, Lease, NewJob, Priority, Progress
from service.store.store import JobStore

__all__ = ["Estimate", "Job", "JobStore", "Lease", "NewJob", "Priority", "Progress"]
