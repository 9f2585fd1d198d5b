"""The content types of requests and answers."""

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
