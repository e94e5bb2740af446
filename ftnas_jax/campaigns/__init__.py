"""Monte-Carlo campaigns: the accuracy of a network on many faulty chips."""
