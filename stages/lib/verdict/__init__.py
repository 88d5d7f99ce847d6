"""From scores to verdicts, real, fake or unsure, and what a person needs beside a verdict."""
