"""What the routes of every shape take: gateway, caller, job id, and the description of their bodies."""

from service.api.videos import IdempotencyKey, JobId, TheCaller, TheGateway, errors

__all__ = ["IdempotencyKey", "JobId", "TheCaller", "TheGateway", "errors", "json_or_form"]


def json_or_form(schema: dict) -> dict:
    """Describes a body in the OpenAPI document."""
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": schema}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}}
