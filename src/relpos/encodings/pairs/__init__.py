"""What two tokens have to do with each other: features of a pair, encoders of a feature, and sums over both."""
