"""The paper's tables: what runs they need, and the tables beside the paper's numbers."""
