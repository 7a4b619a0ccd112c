"""existing_client_fn: A Flower / PyTorch app."""

import torch
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp

from existing_client_fn.task import Net, get_weights, set_weights


def get_evaluate_fn(path):
    """Return a callback that saves the global model after each round."""

    def evaluate(server_round, parameters, config):
        net = Net()
        set_weights(net, parameters)
        torch.save(net.state_dict(), path)

    return evaluate


def weighted_average(metrics):
    """Average the clients' accuracies, weighted by their number of examples."""
    accuracies = [num_examples * m["accuracy"] for num_examples, m in metrics]
    examples = [num_examples for num_examples, _ in metrics]
    return {"accuracy": sum(accuracies) / sum(examples)}


def server_fn(context: Context):
    """Construct components that set the ServerApp behaviour."""
    # Read from config
    num_rounds = context.run_config["num-server-rounds"]
    fraction_evaluate = context.run_config["fraction-evaluate"]

    # Initialize model parameters
    torch.manual_seed(0)
    parameters = ndarrays_to_parameters(get_weights(Net()))

    # Define the strategy
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=fraction_evaluate,
        min_available_clients=2,
        initial_parameters=parameters,
        evaluate_fn=get_evaluate_fn(context.run_config["final-model"]),
        evaluate_metrics_aggregation_fn=weighted_average,
    )
    config = ServerConfig(num_rounds=num_rounds)

    return ServerAppComponents(strategy=strategy, config=config)


# Create ServerApp
app = ServerApp(server_fn=server_fn)
