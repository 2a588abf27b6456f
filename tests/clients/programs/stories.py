"""What every client program of Python shares: orders on standard input, answers on standard output.

An order is one JSON line, `{"story": NAME, "url": BASE_URL, ...}`; so is the answer: what the story returned, or what
the client raised. The program lives on between stories: a client that leaves a stream must be seen to go by what it
did, not by the end of its process.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

MODEL = "/models/tiny-qwen2"
QUESTION = "你好，请自我介绍一下"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The city's name"}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Today's", "parameters": CITY}}

Story = Callable[..., dict[str, Any]]


def raised(error: BaseException) -> dict[str, Any]:
    """What a user's `except` can go by."""
    response = getattr(error, "response", None)
    return {
        "raised": type(error).__name__,
        "classes": [kind.__name__ for kind in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "message": str(error),
        "retry_after": response.headers.get("retry-after") if response is not None else None,
    }


def serve(*stories: Story) -> None:
    """Tell the stories that are asked for, until there are no more orders."""
    by_name = {story.__name__: story for story in stories}
    for line in sys.stdin:
        order = json.loads(line)
        try:
            told = by_name[order.pop("story")](**order)
        except Exception as error:  # what the client makes of it is the question
            told = raised(error)
        print(json.dumps(told), flush=True)
