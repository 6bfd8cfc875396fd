"""The one error that bad input raises."""


class InputError(ValueError):
    """Input that cannot be used; names the file, the field and the value. Commands exit with code 2 on it."""

    def __init__(self, file: object, field: str, value: object, problem: str):
        self.file, self.field, self.value, self.problem = str(file), field, value, problem
        super().__init__(f"{file}: {field}: {problem} (found {value!r})")

    def __reduce__(self):  # so that it comes whole out of another process
        return InputError, (self.file, self.field, self.value, self.problem)
