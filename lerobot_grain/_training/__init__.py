"""Pure helpers between the stream and a policy. Nothing here is needed to stream."""
