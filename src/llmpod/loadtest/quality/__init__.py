"""Quality of answers: a data set with expectations, the verdict on each answer, and the gate that a release passes."""
