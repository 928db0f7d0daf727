from classifier.model.resnet import ResNet3D, smallest_side

__all__ = ["ResNet3D", "smallest_side"]
