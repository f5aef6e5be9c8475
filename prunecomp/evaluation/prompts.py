"""What chat models are asked: short everyday requests, each of which a small model answers and ends by itself."""

PROMPTS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write one sentence about the sea.",
    "How many days are there in a week?",
    "Give me a short recipe for pancakes.",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the sum of two numbers.",
    "List five animals that live on a farm.",
    "Translate 'good morning' into Spanish.",
    "What should I wear when it rains?",
    "Write a polite e-mail that asks for a day off.",
    "Tell me a very short story about a dog and a cat.",
)
