"""What only the book uses: exercises and their checks, samples, diagrams, readers of the results."""
