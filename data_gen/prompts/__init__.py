"""Text prompts for pictures of single objects.

In: a seed, a list of your own, or a language model's folder. Out: `prompts.jsonl`, one `Prompt` a line.

Read `lists.py` first, the prompt and its file. `grammar.py` holds the word lists in `words/`,
`generation.py` combines them, and `rewriter.py` has a language model reword the result.
"""
