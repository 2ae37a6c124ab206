"""Training and test data: synthetic chest radiographs, their reports, the tokenizer and the finding extractor."""
