"""MLCommons LoadGen, the referee of MLPerf Inference, as the sender of the load."""
