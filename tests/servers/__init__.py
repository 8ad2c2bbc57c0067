"""Real servers, started by the tests themselves on free ports of the loopback interface."""
