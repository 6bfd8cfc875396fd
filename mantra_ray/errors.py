"""The one error that bad input raises."""

from mantra_ray.secrets import scrubbed


class InputError(ValueError):
    """Input that cannot be used; names the file, the field and the value. Commands exit with code 2 on it.

    The message is without secrets; an address may hold some.
    """

    def __init__(self, file: object, field: str, value: object, problem: str):
        self.file, self.field, self.value, self.problem = str(file), field, value, problem
        shown = scrubbed(value) if isinstance(value, str) else value
        super().__init__(scrubbed(f"{file}: {field}: {problem} (found {shown!r})"))

    def __reduce__(self):  # so that it comes whole out of another process
        return InputError, (self.file, self.field, self.value, self.problem)
