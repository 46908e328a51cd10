"""What a body may say of the file rather than of the video in it."""

from pydantic import BaseModel, Field, field_validator, model_validator

from service.formats import BY_NAME, FORMATS, H264

BOOLEANS = ("preview", "stream", "embed_prompt", "reuse_finished")  # fields that are true or false


class OutputFields(BaseModel):
    """Beside the parameters of the video and of the job."""

    output_format: str = Field(
        H264.name, description="Container and codec of the file.", json_schema_extra={"enum": list(BY_NAME)}
    )
    crf: int | None = Field(
        None, ge=0, le=max(made.worst for made in FORMATS),
        description="Constant rate factor: the smaller, the better and larger is the file. "
        + "; ".join(f"{made.name}: 0 to {made.worst}, {made.crf} if left out" for made in FORMATS if made.worst) + ".",
    )  # fmt: skip
    embed_prompt: bool = Field(False, description="Write the prompts into the file beside seed, model and parameters.")
    reuse_finished: bool = Field(
        False, description="Answer with an earlier video of yours if all parameters, the seed included, are the same."
    )

    @field_validator("output_format")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BY_NAME:
            raise ValueError(f"one of {', '.join(BY_NAME)}")
        return value

    @model_validator(mode="after")
    def _crf_of_the_format(self):
        made = BY_NAME[self.output_format]
        if self.crf is not None and self.crf > made.worst:
            allowed = f"0 to {made.worst}" if made.worst else "nothing"
            raise ValueError(f"crf is {self.crf}; allowed for {made.name}: {allowed}")
        return self

    def output(self) -> dict:
        """What is kept with the request: only what differs from the usual."""
        said = {"output_format": self.output_format, "crf": self.crf, "embed_prompt": self.embed_prompt}
        usual = {"output_format": H264.name, "crf": None, "embed_prompt": False}
        return {name: value for name, value in said.items() if value != usual[name]}
