"""existing_client_fn: A Flower / PyTorch app."""

import torch
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context

from existing_client_fn.task import Net, get_weights, load_data, set_weights, test, train
from fl_unlearn.flower import unlearning_mod
from fl_unlearn.flower.legacy import forgotten_classes


class FlowerClient(NumPyClient):
    """Trains and evaluates on one partition."""

    def __init__(self, trainloader, valloader, local_epochs, learning_rate):
        self.net = Net()
        self.trainloader = trainloader
        self.valloader = valloader
        self.local_epochs = local_epochs
        self.lr = learning_rate
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def fit(self, parameters, config):
        """Train the model with data of this client."""
        set_weights(self.net, parameters)
        self.trainloader, _ = load(self.context, forgotten_classes(config, self.context))
        train_loss = train(self.net, self.trainloader, self.local_epochs, self.lr, self.device)
        return get_weights(self.net), len(self.trainloader.dataset), {"train_loss": train_loss}

    def evaluate(self, parameters, config):
        """Evaluate the model on the data this client has."""
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.valloader, self.device)
        return loss, len(self.valloader.dataset), {"accuracy": accuracy}


def client_fn(context: Context):
    """Construct a Client that will be run in a ClientApp."""
    # Read the node_config to fetch data partition associated to this node
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]

    # Read run_config to fetch hyperparameters relevant to this run
    batch_size = context.run_config["batch-size"]
    trainloader, valloader = load_data(partition_id, num_partitions, batch_size)
    local_epochs = context.run_config["local-epochs"]
    learning_rate = context.run_config["learning-rate"]

    # Return Client instance
    client = FlowerClient(trainloader, valloader, local_epochs, learning_rate)
    client.context = context
    return client.to_client()


def load(context: Context, without=()):
    """This client's data, which requests are about."""
    node, config = context.node_config, context.run_config
    return load_data(node["partition-id"], node["num-partitions"], config["batch-size"], without)


# Flower ClientApp
app = ClientApp(client_fn, mods=[unlearning_mod(model=Net, data=load)])
